"""Devices: the one role that a machine under test plays, and the drivers that play it."""
