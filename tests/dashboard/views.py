"""The paths of the views. A new view gets a line here, and every test of all views covers it."""

VIEWS = {
    "sign-in": "/dashboard/sign-in",
    "overview": "/dashboard/",
    "jobs": "/dashboard/jobs",
    "job": "/dashboard/jobs/{job}",
    "new-job": "/dashboard/new",
    "batches": "/dashboard/batches",
    "batch": "/dashboard/batches/{batch}",
    "dataset": "/dashboard/datasets/{dataset}",
    "images": "/dashboard/images",
    "image": "/dashboard/images/{image}",
    "workers": "/dashboard/workers",
    "admin": "/dashboard/admin",
    "audit": "/dashboard/admin/audit",
    "tenants": "/dashboard/tenants",
    "tenant": "/dashboard/tenants/{tenant}",
}
