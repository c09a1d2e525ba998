"""headrace: LLM serving infrastructure. One code, two clocks."""

__version__ = "0.1.0"
