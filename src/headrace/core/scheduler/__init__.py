"""Batch Scheduler: which tokens of which sequences the next step computes.

``build_engine_core`` in engine_core.py makes the machine that an engine process and the twin run;
the policy is scheduler.py.
"""
