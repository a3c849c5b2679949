"""Containers: what one is made from, how hardened it is, and the engines that run it."""
