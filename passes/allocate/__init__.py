"""Allocation: which format every row gets, within a limit of bytes."""

from __future__ import annotations

from .article import ArticleAllocator
from .exact import ExactAllocator
from .lagrangian import LagrangianAllocator
from .uniform import UniformAllocator

__all__ = ["ArticleAllocator", "ExactAllocator", "LagrangianAllocator", "UniformAllocator"]
