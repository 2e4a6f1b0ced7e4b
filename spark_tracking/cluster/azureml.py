"""Azure ML as a destination: the region of a workspace, credentials that never prompt, and the plug-in's version limits."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, Any

from spark_tracking.errors import InvalidSetting, InvalidState, PermissionRefused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

RESOURCE_MANAGER = "https://management.azure.com"
_API = "2024-04-01"  # a stable version of the workspaces' API: learn.microsoft.com/rest/api/azureml/workspaces/get
_TIMEOUT = 20.0


def credential(environ: Mapping[str, str] | None = None) -> Any:
    """An azure-identity credential from variables alone: a service principal, a workload identity or a managed identity.

    Unlike the chain of azureml-mlflow, it never opens a browser and never asks for a device code.

    Raises:
        InvalidState: azure-identity is not installed.
    """
    try:
        from azure import identity
    except ImportError:
        raise InvalidState("azure-identity is not installed. Install spark-tracking[azure] on every node.") from None
    environ = os.environ if environ is None else environ
    tenant, client = environ.get("AZURE_TENANT_ID", ""), environ.get("AZURE_CLIENT_ID", "")
    if secret := environ.get("AZURE_CLIENT_SECRET"):
        return identity.ClientSecretCredential(tenant, client, secret)
    if certificate := environ.get("AZURE_CLIENT_CERTIFICATE_PATH"):
        return identity.CertificateCredential(tenant, client, certificate)
    if token_file := environ.get("AZURE_FEDERATED_TOKEN_FILE"):
        return identity.WorkloadIdentityCredential(tenant_id=tenant, client_id=client, token_file_path=token_file)
    return identity.ManagedIdentityCredential(client_id=client or None)


def token(scope: str = f"{RESOURCE_MANAGER}/.default") -> Any:
    """An access token (`.token`, `.expires_on` in seconds since 1970), from azure-identity's own cache while it is fresh.

    PermissionRefused where Azure gives none, with its reason but without the secret.
    """
    from azure.core.exceptions import AzureError

    try:
        return credential().get_token(scope)
    except AzureError as error:
        raise PermissionRefused(
            f"Azure gives no token: {str(error).splitlines()[0]} Check AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET "
            "from the secret scope, or give the node a managed identity."
        ) from None


def find_region(subscription: str, group: str, workspace: str) -> str:
    """Ask Azure where a workspace lies, in one call.

    Raises:
        InvalidSetting: there is no such workspace.
        InvalidState, PermissionRefused, Unavailable: azure-identity is missing, the identity may not read it, Azure does not answer.
    """
    import requests

    path = f"subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.MachineLearningServices/workspaces/{workspace}"
    bearer = token().token
    try:
        answer = requests.get(
            f"{RESOURCE_MANAGER}/{path}", params={"api-version": _API}, headers={"Authorization": f"Bearer {bearer}"}, timeout=_TIMEOUT
        )
    except requests.RequestException as error:
        raise Unavailable(
            f"{RESOURCE_MANAGER} does not answer ({type(error).__name__}). Set SPARK_TRACKING_AZURE_REGION to do without."
        ) from None
    if answer.status_code == 404:
        raise InvalidSetting(f"There is no Azure ML workspace '{workspace}' in resource group '{group}' of subscription {subscription}.")
    if answer.status_code in (401, 403):
        raise PermissionRefused(f"The identity may not read the workspace '{workspace}'. Give it the role Reader, or set the region.")
    if not answer.ok:
        raise Unavailable(f"{RESOURCE_MANAGER} answered {answer.status_code}. Set SPARK_TRACKING_AZURE_REGION to do without.")
    return str(answer.json()["location"])


def check_plugin() -> None:
    """See that azureml-mlflow is here and with an MLflow that it is made for; InvalidState where not."""
    from packaging.requirements import Requirement

    try:
        plugin = version("azureml-mlflow")
    except PackageNotFoundError:
        raise InvalidState(
            "azureml-mlflow is not installed, so MLflow does not know azureml://. Set SPARK_TRACKING_PACKAGE to 'spark-tracking[azure]', "
            "or to a wheel whose folder holds it."
        ) from None
    for text in requires("azureml-mlflow") or []:
        needed = Requirement(text)
        if needed.name == "mlflow-skinny" and not needed.specifier.contains(version("mlflow-skinny"), prereleases=True):
            raise InvalidState(
                f"azureml-mlflow {plugin} needs mlflow-skinny{needed.specifier}, and {version('mlflow-skinny')} is installed. "
                "Take a runtime with an older MLflow, or install that MLflow in a notebook's own environment."
            )
