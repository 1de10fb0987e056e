"""A project of a device author's, whole from its first minute: device, tests, packaging and CI, from templates."""

from vfio_user.new_project.project import CI, PROTOCOLS, Names, write_project

__all__ = ["CI", "PROTOCOLS", "Names", "write_project"]
