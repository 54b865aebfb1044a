"""The archive that ships: model, manifest, evidence."""
