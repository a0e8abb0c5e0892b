module straightway/servers/ais

go 1.26

require github.com/NVIDIA/aistore v1.5.0
