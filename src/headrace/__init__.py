"""headrace: LLM serving infrastructure. One code, two clocks."""

from headrace.build import is_interpreted, use_source

__version__ = "0.1.0"

if is_interpreted():
    use_source()
