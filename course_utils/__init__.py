"""Helpers of the course "Pruning LLMs"; each module is one idea, see its docstring."""

__version__ = "0.1.0"
