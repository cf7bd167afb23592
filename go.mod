module github.com/go-handover/handover

go 1.25.0

require (
	github.com/kardianos/osext v0.0.0-20190222173326-2bc1f35cddc0
	github.com/rs/zerolog v1.35.1
	golang.org/x/sys v0.46.0
)

require (
	github.com/mattn/go-colorable v0.1.14 // indirect
	github.com/mattn/go-isatty v0.0.20 // indirect
)
