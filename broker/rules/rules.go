// Package rules is what an owner adds to a broker's own checks: a file of named conditions in CEL (https://cel.dev), all of which have to
// be true of a machine before it gets a secret. They see what was verified, and nothing else; each evaluation is bounded.
package rules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/cel-go/cel"

	"manis/broker/facts"
)

// Bounds of a file, and of one evaluation: its cost in CEL's units, and its time.
const (
	MaxBytes = 64 << 10
	maxRules = 64
	maxCost  = 1_000_000
	maxTime  = 2 * time.Second
)

// Rules are those of a file. They can be evaluated by several at once.
type Rules struct{ all []rule }

type rule struct {
	name    string
	program cel.Program
}

// environment are the variables of a rule.
func environment() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("hardware", cel.StringType),
		cel.Variable("kind", cel.StringType),
		cel.Variable("firmwareKnown", cel.BoolType),
		cel.Variable("owner", cel.StringType),
		cel.Variable("digest", cel.StringType),
		cel.Variable("secrets", cel.ListType(cel.StringType)),
		cel.Variable("manifest", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable("now", cel.TimestampType),
		cel.ParserExpressionSizeLimit(MaxBytes),
		cel.ParserRecursionLimit(100),
	)
}

// Parse reads a file: "NAME: EXPRESSION", which goes on over indented lines; lines that begin with # are notes. Each
// expression has to be of type bool.
func Parse(file []byte) (*Rules, error) {
	if len(file) > MaxBytes {
		return nil, fmt.Errorf("the rules have %d bytes, more than %d", len(file), MaxBytes)
	}
	sources, err := split(string(file))
	if err != nil {
		return nil, err
	}
	env, err := environment()
	if err != nil {
		return nil, err
	}
	rules := new(Rules)
	for _, s := range sources {
		ast, issues := env.Compile(s.expression)
		if err := issues.Err(); err != nil {
			return nil, fmt.Errorf("rule %s: %w", s.name, err)
		}
		if ast.OutputType() != cel.BoolType {
			return nil, fmt.Errorf("rule %s: it is a %s, not true or false", s.name, ast.OutputType())
		}
		program, err := env.Program(ast, cel.CostLimit(maxCost), cel.InterruptCheckFrequency(100))
		if err != nil {
			return nil, fmt.Errorf("rule %s: %w", s.name, err)
		}
		rules.all = append(rules.all, rule{s.name, program})
	}
	return rules, nil
}

type source struct{ name, expression string }

func split(file string) ([]source, error) {
	var all []source
	seen := make(map[string]bool)
	for i, l := range strings.Split(file, "\n") {
		switch trimmed := strings.TrimSpace(l); {
		case trimmed == "" || l[0] == '#':
		case l[0] == ' ' || l[0] == '\t':
			if len(all) == 0 {
				return nil, fmt.Errorf("line %d: it continues no rule", i+1)
			}
			all[len(all)-1].expression += "\n" + l
		default:
			name, expression, ok := strings.Cut(l, ":")
			if !ok || !isName(name) || seen[name] {
				return nil, fmt.Errorf("line %d: %.80q does not begin with a name of its own and a colon (letters, digits, '-'; go on with a space)", i+1, l)
			}
			seen[name] = true
			all = append(all, source{name, expression})
		}
	}
	if len(all) == 0 || len(all) > maxRules {
		return nil, fmt.Errorf("%d rules: there are 1 to %d", len(all), maxRules)
	}
	return all, nil
}

func isName(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == ""
}

// Check evaluates all rules in their order, and names the first that is not true. A rule that cannot be evaluated is not true.
func (r *Rules) Check(f *facts.Facts) error {
	vars, err := variables(f)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), maxTime)
	defer cancel()
	for _, rule := range r.all {
		v, _, err := rule.program.ContextEval(ctx, vars)
		if err != nil {
			return fmt.Errorf("rule %s: it cannot be evaluated: %w", rule.name, err)
		}
		if ok, isBool := v.Value().(bool); !isBool || !ok {
			return fmt.Errorf("rule %s: it is not true of this machine", rule.name)
		}
	}
	return nil
}

func variables(f *facts.Facts) (map[string]any, error) {
	b, err := json.Marshal(f.Manifest)
	if err != nil {
		return nil, err
	}
	var manifest map[string]any
	if err := json.Unmarshal(b, &manifest); err != nil {
		return nil, errors.New("the manifest is no object")
	}
	secrets := []string{}
	for _, s := range f.Manifest.Secrets {
		secrets = append(secrets, s.Name)
	}
	return map[string]any{
		"hardware": f.Result.Hardware, "kind": f.Evidence.Kind, "firmwareKnown": f.Result.FirmwareKnown, "owner": f.Evidence.Owner,
		"digest": f.Digest, "secrets": secrets, "manifest": manifest, "now": f.Now,
	}, nil
}
