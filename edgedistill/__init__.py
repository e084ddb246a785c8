"""edgedistill: turn a big open-weight model into a small one, and prove it.

What a command does, a function of the same name does: `load_recipe`, `run_recipe`, `open_run`, `convert_adapter`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.10.0"

# name -> where it lives; looked up on first use, so that importing the package stays cheap
PUBLIC = {
    "EdgeDistillError": "errors",
    "convert_adapter": "students.adapter",
    "load_recipe": "recipe",
    "open_run": "run",
    "RunSettings": "pipeline",
    "check": "preflight",
    "load_run": "pipeline",
    "run_recipe": "pipeline",
    "document": "report.summary",
}
__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'edgedistill' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)
