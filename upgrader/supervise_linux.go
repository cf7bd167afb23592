package upgrader

import (
	"fmt"
	"os"

	"github.com/go-handover/handover/internal/supervise"
)

func supervisePID1() (code int, done bool) {
	if os.Getpid() != 1 {
		supervise.AdoptListenPID()
		return 0, false
	}
	// The path, not the image: after a crash what was deployed last is started.
	program, err := resolveExecutable("", os.Args[0])
	if err == nil {
		code, err = supervise.Run(supervise.Config{
			Name: "upgrader: process 1", Path: program.path(), Command: os.Args, Restart: supervise.OnFailure, Direct: true,
		})
	} else {
		code = 126
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "upgrader: process 1:", err)
	}
	return code, true
}
