"""WaveFlow's audio service on Ray: SQS jobs in, waveforms and mixes in S3, webhooks out."""

from waveflow_ray.errors import ConfigurationError, ErrorCode, JobError

__version__ = "0.1.0"
__all__ = ["ConfigurationError", "ErrorCode", "JobError", "__version__"]
