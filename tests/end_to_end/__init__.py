"""Whole stages over real sockets: what clients, vendors and operators would see."""
