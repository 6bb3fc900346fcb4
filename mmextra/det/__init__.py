"""Detectors, heads and detection losses."""
