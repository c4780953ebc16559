"""Measurements of jobfleet; see README.md beside this file."""
