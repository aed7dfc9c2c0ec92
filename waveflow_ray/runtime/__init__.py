"""The service: a thin layer of Ray around plain classes.

`ingress`, `leases`, `courier` and `subjects` know nothing of Ray; `placement` has all of Ray's
options, and `tasks`, `cells`, `executor`, `actors` and `app` use them.
"""
