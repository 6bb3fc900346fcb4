"""Segmentors and segmentation heads."""
