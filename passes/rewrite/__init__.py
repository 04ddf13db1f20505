"""Rewrites: passes that take a graph and return a graph."""

from __future__ import annotations

from .fuse import FuseRewrite
from .keep import KeepRewrite
from .scope import ScopeRewrite

__all__ = ["FuseRewrite", "KeepRewrite", "ScopeRewrite"]
