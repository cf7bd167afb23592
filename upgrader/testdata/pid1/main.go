// Pid1 is a server that tells each client its pid, and may be process 1.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/go-handover/handover/upgrader"
)

func main() {
	if code, done := upgrader.SupervisePID1(); done {
		os.Exit(code)
	}
	ctx := context.Background()
	serving := make(chan struct{}) // confirmed, too: it can be upgraded
	up, err := upgrader.New(upgrader.Options{Probation: -1, OnEvent: func(e upgrader.Event) {
		if e.Kind == upgrader.EventState && e.To == "serving" {
			close(serving)
		}
	}})
	if err != nil {
		log.Fatal(err)
	}
	if err := up.HandleSignals(ctx, upgrader.Signals{}); err != nil {
		log.Fatal(err)
	}
	ln, err := up.Listen(ctx, "tcp", "tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, os.Getpid())
			_ = c.Close()
		}
	}()
	if err := up.Ready(); err != nil {
		log.Fatal(err)
	}
	<-serving
	fmt.Println("serving", os.Getpid(), os.Getppid(), ln.Addr())
	<-up.Done()
}
