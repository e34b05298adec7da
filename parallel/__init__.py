"""Devices: meshes, sharding rules, start-up on many hosts, hardware figures."""
