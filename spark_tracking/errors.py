"""The errors users meet. One tree, mapped onto MLflow's error codes:

    SparkTrackingError(MlflowException)       base: `except SparkTrackingError` catches all of ours
    ├── InvalidInput          400  INVALID_PARAMETER_VALUE   a value that cannot be right, whoever calls
    │   ├── InvalidUri                                       a tracking URI that does not parse
    │   └── InvalidSetting                                   an environment variable or option with a bad value
    ├── NotFound              404  RESOURCE_DOES_NOT_EXIST   what the caller named does not exist
    ├── AlreadyExists         400  RESOURCE_ALREADY_EXISTS   a unique name is taken
    ├── InvalidState          400  INVALID_STATE             it exists, but not in a state that allows this
    ├── PermissionRefused     403  PERMISSION_DENIED         the store or server said no
    ├── Unavailable           503  TEMPORARILY_UNAVAILABLE   cannot be reached or kept busy; trying again may help
    └── LakeError             500  INTERNAL_ERROR            the lake itself
        ├── LakeFormatError                                  not a lake, or one of a format we do not know
        ├── LakeReadOnly                                     a write to a root that cannot be written
        ├── LakeCorrupt                                      files that are gone, or whose bytes have changed
        └── NoSpace                                          the disk is full

Every message names the value, says what was expected, and ends with what to do. None holds a secret: what looks like one is masked.
"""

from __future__ import annotations

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    INVALID_PARAMETER_VALUE,
    INVALID_STATE,
    PERMISSION_DENIED,
    RESOURCE_ALREADY_EXISTS,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)

from spark_tracking.masking import masked


class SparkTrackingError(MlflowException):
    """Base of all our errors; `error_code` is the MLflow code that REST clients see."""

    code: int = INTERNAL_ERROR

    def __init__(self, message: str) -> None:
        super().__init__(masked(message), error_code=self.code)


class InvalidInput(SparkTrackingError):
    """A value that cannot be right."""

    code = INVALID_PARAMETER_VALUE


class InvalidUri(InvalidInput):
    """A tracking URI that is none of the accepted forms."""


class InvalidSetting(InvalidInput):
    """An environment variable or option whose value is not allowed."""


class NotFound(SparkTrackingError):
    """What the caller named does not exist."""

    code = RESOURCE_DOES_NOT_EXIST


class AlreadyExists(SparkTrackingError):
    """A unique name is taken."""

    code = RESOURCE_ALREADY_EXISTS


class InvalidState(SparkTrackingError):
    """The thing exists, but its state does not allow the call."""

    code = INVALID_STATE


class PermissionRefused(SparkTrackingError):
    """The store or server refused the caller."""

    code = PERMISSION_DENIED


class Unavailable(SparkTrackingError):
    """Not reachable now; the same call may succeed later."""

    code = TEMPORARILY_UNAVAILABLE


class LakeError(SparkTrackingError):
    """Something about the lake itself."""


class LakeFormatError(LakeError):
    """The root holds no lake, or one of a format that this version does not know."""


class LakeReadOnly(LakeError):
    """A write to a root that cannot be written."""


class LakeCorrupt(LakeError):
    """Files of the lake are gone, or their bytes have changed."""


class NoSpace(LakeError):
    """The disk that holds the lake is full."""
