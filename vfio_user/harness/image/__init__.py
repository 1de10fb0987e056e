"""Guest images: a kernel and an initramfs, made of Debian packages by a recipe, without root.

`ensure_image("minimal")` is all that a test needs; the first call takes some seconds, every later one milliseconds.
"""

from vfio_user.harness.image.builder import GuestImage, ImageStatus, build_image, ensure_image, list_images
from vfio_user.harness.image.recipe import ImageRecipe, load_recipe

__all__ = ["GuestImage", "ImageRecipe", "ImageStatus", "build_image", "ensure_image", "list_images", "load_recipe"]
