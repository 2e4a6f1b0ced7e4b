"""azureml-mlflow without the log-ins that need a person: on a cluster nobody sees them, and the job would hang until they time out."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def never_prompt() -> None:
    """Take the browser and the device code out of azureml-mlflow's chain of credentials, which has no switch for it.

    Service principal, workload identity and managed identity stay. Imports no MLflow, so it can run while that is imported.
    """
    try:
        from azure.identity import CredentialUnavailableError

        utils = import_module("azureml.mlflow._internal.utils")
    except ImportError:  # no plug-in: MLflow itself says that it does not know the scheme
        return

    class NobodyToAsk:
        def __init__(self, **_: Any) -> None:
            pass

        def get_token(self, *_: str, **__: Any) -> Any:
            raise CredentialUnavailableError(
                message="No service principal is set (AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_SECRET) and the node has no managed "
                "identity that answers. Nobody is asked to log in on a cluster. See `spark-tracking doctor`."
            )

        get_token_info = get_token

    for name in ("InteractiveBrowserCredential", "DeviceCodeCredential"):
        if hasattr(utils, name):
            setattr(utils, name, NobodyToAsk)
