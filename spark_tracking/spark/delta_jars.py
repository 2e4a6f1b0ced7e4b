"""Delta's jars for a Spark that came from pip.

`spark.jars.packages` would do, at the price of pages of Ivy's output at each start and 70 MB of jars that Spark already
has. So the Ivy inside Spark is run once, on its own, with its output kept for the case that it fails; what it found is
remembered, and the next start needs no network.

Where Ivy looks: the environment variable `DEFAULT_ARTIFACT_REPOSITORY` (Spark's own), else a mirror of Maven Central in
`~/.m2/settings.xml`, else Ivy's default, which is Maven Central.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from spark_tracking.errors import InvalidState, Unavailable

MIN_JAVA = 17
_ADVICE = f"Install a JDK {MIN_JAVA} or newer, or point JAVA_HOME at one."
_SCALA = "2.13"


def java() -> str:
    """The `java` that Spark will use, from JAVA_HOME, else the PATH; InvalidState where none runs, or it is older than 17."""
    command, major = found_java()
    if major < MIN_JAVA:
        raise InvalidState(f"Spark needs Java {MIN_JAVA} or newer, and '{command}' is Java {major}. {_ADVICE}")
    return command


def found_java() -> tuple[str, int]:
    """The command and its major version; InvalidState where there is none, or it does not run."""
    home = os.environ.get("JAVA_HOME")
    command = os.path.join(home, "bin", "java") if home else shutil.which("java")
    if not command:
        raise InvalidState(f"Spark needs Java, and no `java` was found on the PATH. {_ADVICE}")
    try:
        told = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=60, check=True).stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise InvalidState(f"Spark needs Java, and '{command}' does not run ({error}). {_ADVICE}") from None
    found = re.search(r'version "(?:1\.)?(\d+)', told)
    return command, int(found[1]) if found else MIN_JAVA


def delta_jars() -> list[Path]:
    """The jars that Delta needs beside those of the installed pyspark, downloaded on the first call (about 15 MB).

    Raises:
        InvalidState: no delta-spark is installed, or no suitable Java.
        Unavailable: the jars could not be downloaded; the message holds what Ivy said.
    """
    import pyspark

    try:
        delta = version("delta-spark")
    except PackageNotFoundError:
        raise InvalidState("The package delta-spark is not installed. Run: pip install 'spark-tracking[spark]'") from None
    spark = ".".join(pyspark.__version__.split(".")[:2])
    # From Spark 4.1 on the artifact's name carries Spark's version.
    module = f"delta-spark_{_SCALA}" if spark == "4.0" else f"delta-spark_{spark}_{_SCALA}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spark-tracking" / "jars"
    listing = cache / f"{module}-{delta}.classpath"
    jars = _listed(listing)
    if not (jars and all(jar.exists() for jar in jars)):
        cache.mkdir(parents=True, exist_ok=True)
        print(f"Downloading Delta Lake {delta} for Spark {spark} (once, about 15 MB) ...", file=sys.stderr, flush=True)
        _resolve(module, delta, Path(pyspark.__file__).parent / "jars", listing)
        jars = _listed(listing)
    return jars


def _listed(listing: Path) -> list[Path]:
    return [Path(jar) for jar in listing.read_text().strip().split(os.pathsep)] if listing.exists() else []


def _resolve(module: str, revision: str, spark_jars: Path, listing: Path) -> None:
    """Let Ivy download `io.delta:module:revision` with what it needs and Spark lacks; write the jars' paths to `listing`."""
    ivy = next(spark_jars.glob("ivy-*.jar"), None)
    if ivy is None:
        raise InvalidState(f"'{spark_jars}' holds no Ivy jar, so this is not a pyspark from pip. Add Delta to that Spark yourself.")
    present = sorted({found[1] for jar in spark_jars.glob("*.jar") if (found := re.match(r"(.+?)-\d", jar.name))})
    with tempfile.TemporaryDirectory() as folder:
        settings, descriptor, classpath = (Path(folder, name) for name in ("settings.xml", "ivy.xml", "classpath"))
        settings.write_text(
            '<ivysettings><settings defaultResolver="maven"/><caches lockStrategy="artifact-lock-nio"/><resolvers>'
            f'<ibiblio name="maven" m2compatible="true"{_root()}/></resolvers></ivysettings>'
        )
        descriptor.write_text(
            '<ivy-module version="2.0"><info organisation="spark-tracking" module="jars"/><dependencies>'
            f'<dependency org="io.delta" name="{module}" rev="{revision}" conf="*->default"/>'
            + "".join(f"<exclude module={quoteattr(name)}/>" for name in present)
            + "</dependencies></ivy-module>"
        )
        options = {"-settings": settings, "-ivy": descriptor, "-cache": listing.parent, "-cachepath": classpath}
        command = [java(), "-jar", ivy, "-warn", *(part for option in options.items() for part in option)]
        told = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if told.returncode or not classpath.exists():
            raise Unavailable(
                f"Delta's jars (io.delta:{module}:{revision}) could not be downloaded. Check the network, or name a Maven mirror "
                f"in DEFAULT_ARTIFACT_REPOSITORY. Ivy said:\n{told.stdout.strip()}"
            )
        # Renamed into place, so that a process that starts at the same time never reads half a list.
        finished = listing.with_suffix(f".{os.getpid()}")
        shutil.copyfile(classpath, finished)
        os.replace(finished, listing)


def _root() -> str:
    """The attribute that points Ivy at another repository than its default, or nothing."""
    url = os.environ.get("DEFAULT_ARTIFACT_REPOSITORY") or _maven_mirror(Path.home() / ".m2" / "settings.xml")
    return f" root={quoteattr(url)}" if url else ""


def _maven_mirror(settings: Path) -> str | None:
    """The URL that the user's Maven settings put in Maven Central's place."""
    if not settings.exists():
        return None
    for mirror in ElementTree.parse(settings).iterfind("{*}mirrors/{*}mirror"):
        covers = {name.strip() for name in mirror.findtext("{*}mirrorOf", "").split(",")}
        if covers & {"*", "central", "external:*"} and "!central" not in covers:
            return mirror.findtext("{*}url")
    return None
