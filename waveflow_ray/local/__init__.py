"""Everything on one machine: S3 and SQS by moto, a main server to talk to, a song to work on."""
