"""Files: artefacts that describe themselves, and stamps that say what a file was made from."""
