"""The screens of the dashboard: where each is. Whoever adds one adds its line, and every test of screens has it."""

SCREENS = {
    "sign-in": "/dashboard/sign-in",
    "overview": "/dashboard/",
    "jobs": "/dashboard/jobs",
    "job": "/dashboard/jobs/{job}",
    "new-job": "/dashboard/new",
    "batches": "/dashboard/batches",
    "batch": "/dashboard/batches/{batch}",
    "dataset": "/dashboard/datasets/{dataset}",
    "gallery": "/dashboard/gallery",
    "picture": "/dashboard/gallery/{image}",
    "workers": "/dashboard/workers",
    "admin": "/dashboard/admin",
    "audit": "/dashboard/admin/audit",
}
