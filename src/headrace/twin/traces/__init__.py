"""Traces: who asked for what, when. One module a format; ``open_trace`` finds the right one."""
