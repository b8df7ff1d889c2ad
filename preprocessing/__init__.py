"""Installed as sam3dnet.preprocessing; see setup.py."""

if __name__ != "sam3dnet.preprocessing":
    raise ImportError(
        f"the folder preprocessing/ was imported as {__name__!r}; import sam3dnet.preprocessing (pip install . puts it "
        "there), so that no module exists twice"
    )
