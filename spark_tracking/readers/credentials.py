"""What a process that reads elsewhere needs to be let in as this one is."""

from __future__ import annotations

import os

# Where MLflow, its plug-ins, database drivers and Delta look for credentials.
PREFIXES = ("MLFLOW_TRACKING_", "DATABRICKS_", "AZURE_", "AWS_", "GOOGLE_", "PGPASS", "PGSSL")
_NOT_SENT = ("MLFLOW_TRACKING_URI", "DATABRICKS_RUNTIME_VERSION")


def credentials(tracking_uri: str) -> dict[str, str]:
    """The environment variables with which another process reaches a server: this one's, and what it knows from elsewhere.

    That is `~/.mlflow/credentials`, which a worker has not, and on Databricks the notebook's own token, which nobody can renew.
    """
    from mlflow.utils.credentials import read_mlflow_creds
    from mlflow.utils.uri import is_databricks_uri

    found = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES) and name not in _NOT_SENT}
    file = read_mlflow_creds()
    if file.username and file.password:
        found |= {"MLFLOW_TRACKING_USERNAME": file.username, "MLFLOW_TRACKING_PASSWORD": file.password}
    if is_databricks_uri(tracking_uri) and not found.keys() & {"DATABRICKS_TOKEN", "DATABRICKS_CLIENT_SECRET"}:
        from mlflow.utils.databricks_utils import get_databricks_host_creds

        host = get_databricks_host_creds(tracking_uri)
        if host.host and host.token:
            found |= {"DATABRICKS_HOST": host.host, "DATABRICKS_TOKEN": host.token}
    return found
