"""CAM methods: pure functions of activation maps and their cotangents."""
