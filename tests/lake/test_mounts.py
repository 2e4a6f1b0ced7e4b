"""Mounts of object stores are recognised, and the answer says what to use: on them a lake would lose data in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from spark_tracking.errors import InvalidUri
from spark_tracking.lake import Lake, root_folder

MOUNTS = """\
overlay / overlay rw,relatime 0 0
/dev/nvme1n1 /data ext4 rw,relatime 0 0
server:/export /nfs nfs4 rw,vers=4.2 0 0
s3fs /mnt/models fuse.s3fs rw,nosuid,nodev,relatime,user_id=0 0 0
remote:bucket /mnt/remote fuse.rclone rw,nosuid,nodev 0 0
blobfuse2 /mnt/blob\\040store fuse rw,nosuid,nodev 0 0
mountpoint-s3 /mnt/s3 fuse rw,nosuid,nodev,noatime 0 0
my-bucket /mnt/gcs fuse.gcsfuse rw,nosuid,nodev 0 0
/dev/nvme2n1 /mnt/models/scratch ext4 rw,relatime 0 0
host:/home /mnt/ssh fuse.sshfs rw,nosuid,nodev 0 0
"""


@pytest.mark.parametrize(
    "path", ["/mnt/models", "/mnt/models/lake", "/mnt/remote/a/b", "/mnt/blob store/lake", "/mnt/s3/lake", "/mnt/gcs/lake"]
)
def test_a_mounted_object_store_is_refused_with_what_to_use(path: str) -> None:
    with pytest.raises(InvalidUri, match=r"delta\+s3://") as caught:
        root_folder.refuse_cloud_mount(Path(path), MOUNTS)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    "path", ["/data/lake", "/nfs/lake", "/mnt/models/scratch/lake", "/mnt/modelsandmore", "/mnt/ssh/lake", "/home/lake"]
)
def test_a_folder_of_another_file_system_is_accepted(path: str) -> None:
    root_folder.refuse_cloud_mount(Path(path), MOUNTS)


@pytest.mark.parametrize(("path", "hint"), [("/Volumes/main/ml/lake", "DESCRIBE VOLUME"), ("/dbfs/mnt/lake", "dbutils.fs.mounts")])
def test_databricks_mounts_are_refused_with_how_to_find_the_cloud_uri(path: str, hint: str) -> None:
    with pytest.raises(InvalidUri, match=hint) as caught:
        Lake.open(f"delta://{path}", create=True)
    assert "mlflow server" in str(caught.value)
    assert not Path(path).exists()
