"""Data containers: oriented boxes, point clouds, clips, series."""
