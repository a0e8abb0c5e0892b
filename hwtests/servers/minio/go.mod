module straightway/servers/minio

go 1.26

require github.com/minio/minio v0.0.0-20251015172955-9e49d5e7a648
