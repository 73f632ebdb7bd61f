"""An index held by LanceDB, in a folder or in object storage."""
