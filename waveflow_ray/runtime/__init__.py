"""The service: a thin layer of Ray around plain classes.

`ingress`, `leases`, `courier` and `subjects` know nothing of Ray; `actors` binds them.
"""
