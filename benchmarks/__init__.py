"""Measurements of streamadapt, and the scripts that made its shipped assets."""
