"""What an author declares in a device's class: state, options; how its values are saved, and their digest."""
