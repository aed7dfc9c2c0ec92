"""An AWS account with real hosts on one Linux machine, for `ray up` of the cluster file."""
