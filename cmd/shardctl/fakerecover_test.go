package main

type fakeRecovery struct{}
