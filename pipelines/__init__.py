"""Whole jobs on the public face of longctx; installed as ``longctx.pipelines``."""
