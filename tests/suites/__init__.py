"""Clients that others wrote, in versions that our own environment does not have, before the whole proxy."""
