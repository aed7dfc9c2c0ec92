"""A machine of a cluster: Ray kept running on it, the service started, a spot notice heeded."""
