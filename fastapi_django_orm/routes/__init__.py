"""The routes that the plugin adds to an application: refresh and health."""
