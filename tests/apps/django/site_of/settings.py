SECRET_KEY = "an example's"
DEBUG = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "site_of.urls"
USE_TZ = True
