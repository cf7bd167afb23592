package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// longFlags gives every flag of more than one letter two dashes, as pflag wants
// them: "-socket PATH" is what Go's own programs are told. What begins like a
// flag of one letter and is none of the long ones stays as it is.
func longFlags(root *cobra.Command, args []string) []string {
	flags := flagsOf(root)
	long := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(long, args[i:]...)
		}
		name, _, hasValue := strings.Cut(strings.TrimPrefix(arg, "-"), "=")
		name = strings.TrimPrefix(name, "-")
		flag := flags[name]
		if !strings.HasPrefix(arg, "-") || len(name) < 2 || name[0] == '-' || flag == nil && flags[name[:1]] != nil {
			long = append(long, arg)
			continue
		}
		long = append(long, "--"+strings.TrimLeft(arg, "-"))
		if flag != nil && flag.NoOptDefVal == "" && !hasValue && i+1 < len(args) {
			i++ // its value, whatever that looks like
			long = append(long, args[i])
		}
	}
	return long
}

// flagsOf returns the flags of c and of all commands below it by name, those of
// one letter too.
func flagsOf(c *cobra.Command) map[string]*pflag.Flag {
	flags := map[string]*pflag.Flag{}
	var collect func(*cobra.Command)
	collect = func(c *cobra.Command) {
		c.InitDefaultHelpFlag()
		c.InitDefaultVersionFlag()
		add := func(f *pflag.Flag) {
			flags[f.Name] = f
			if f.Shorthand != "" {
				flags[f.Shorthand] = f
			}
		}
		c.Flags().VisitAll(add)
		c.PersistentFlags().VisitAll(add)
		for _, sub := range c.Commands() {
			collect(sub)
		}
	}
	collect(c)
	return flags
}
