"""The screens of the dashboard: where each is. Whoever adds one adds its line, and every test of screens has it."""

SCREENS = {
    "sign-in": "/dashboard/sign-in",
    "overview": "/dashboard/",
}
