"""The only code that talks to AWS. boto3's errors end here, as `JobError` or `QueueError`."""
