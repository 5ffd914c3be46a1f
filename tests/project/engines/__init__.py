"""Django database engines that do something of their own."""
